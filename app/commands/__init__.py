"""The commands of `mnemosine`, a file for each or for a few on one thing; `app/cli.py` puts them together.

A module here imports `click` and what is in this package; everything else when its command runs, so that
`mnemosine --help` is quick.
"""
