"""What a student draws pictures of: one module a task, and one that opens whichever it is."""
