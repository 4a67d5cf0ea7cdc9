"""What an answer says: options, yes and no, short answers, and how near they are to what was wanted."""
