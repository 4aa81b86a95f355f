"""Version 1 of Mnemosine's own routes; request and reply models stand beside them."""
