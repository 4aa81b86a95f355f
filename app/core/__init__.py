"""What Mnemosine does, without HTTP."""
