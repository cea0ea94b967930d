"""What the data plane costs: claims of speed and memory, each beside a limit or a peer.

``python -m bench chain|project|land``. Every number is a ratio measured side by side in one run;
nothing here is a test, and no test asserts a time. Read in this order: `report` (what is printed),
`measuring` (clocks, memory, processes), `chain`, `project`, `land`; `cluster`, `playing`, `appends`
and `history` carry them.
"""
