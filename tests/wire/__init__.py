"""Every wire against a running server, by the clients that people use."""
