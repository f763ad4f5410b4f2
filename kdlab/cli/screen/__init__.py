"""What verbs share: the board, tables on the terminal, options, questions."""
