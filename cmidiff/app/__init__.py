"""The command line: parse, call, show.

What a person has to correct is a `ValueError` of one line that says what to do; `cmidiff.app.errors` shows it.
"""
