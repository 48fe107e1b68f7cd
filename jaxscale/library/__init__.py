"""What a notebook or a script calls: the verbs as functions that return values. `import jaxscale` loads none of it."""
