"""The page that `cmidiff serve` shows.

inputs.py   what a person gives, within limits, as a problem that the command line could have been given
jobs.py     a run that can be watched and cancelled, its folder and its archive; the visits that have runs
layout.py   what is on the page
page.py     what happens when a person does something
look.py     how the page looks
shown.py    what a person sees of a run
server.py   the process: its address, its own temporary folder, what it refuses before the page sees it
"""
