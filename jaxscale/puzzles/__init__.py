"""Ten exercises, and who checks them. The learner's code runs in a child process (`grader`); all else has no jax."""
