"""Runs as one HTML page that needs nothing else: to be read in a browser, and sent to others. No torch.

In come runs as `results.runs` reads them; out goes a page. `run` is the work of the command, `page` joins the sections
of `sections` and `evaluations`, `subject` says what of a folder is shown, `pictures` brings images into the page, and
`markup` escapes all that is put into it.
"""
