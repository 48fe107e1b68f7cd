"""The child process of the puzzles: it runs a learner's file on simulated devices and reads the compiled program."""
