"""A report of runs that one can send: a page that opens without a network, numbers for programs, figures for print."""
