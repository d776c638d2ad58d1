"""One module per family of teachers: foreign conventions, adapted once."""
