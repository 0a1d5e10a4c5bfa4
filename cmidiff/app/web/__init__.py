"""The page that `cmidiff serve` shows.

controls.py the wishes, and the values of the controls
inputs.py   what a person gives, within limits, as a problem that the command line could have been given
jobs.py     a run that can be watched and cancelled, its folder and its archive
visits.py   what is kept of each browser window
layout.py   what is on the page
sizes.py    which sizes a run may have, and its options
page.py     what happens when a person does something
look.py     how the page looks
shown.py    what a person sees of a run
guard.py    what is refused before the page sees it
server.py   the process: its address and its own temporary folder
"""
