"""The page that `cmidiff serve` shows.

inputs.py   what a visitor gives, within limits, as a problem that the command line could have been given
jobs.py     one visitor's run: a thread that can be watched and cancelled, its folder and its archive
layout.py   the page
look.py     how it looks, and what it refuses in the browser
shown.py    what a visitor sees of a run
server.py   the process: its address, its own temporary folder, what it refuses before the page sees it
"""
