"""Speech: from a reply's text and the thinker's states to sound."""
