"""`python -m app` is `mnemosine`."""

from app.cli import main

main()
