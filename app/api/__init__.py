"""HTTP and nothing else: parse, authorise, call the core, shape the reply."""
