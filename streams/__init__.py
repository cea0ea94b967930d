"""What happened: the words of the data plane, and the log they are kept in.

Every event, the subject it lives under, its bytes on the wire and the log that keeps it for ever.
Nothing here decides, folds or moves anything. Read in this order: `values` (the nouns), `events`
(the facts), `subjects` (where a fact lives), `identity` (whose file a path is), `codec` (bytes to
facts and back), `stored` (a message as it is kept), `log` (the contract of a log), `memory` and
`jetstream` (two logs that keep it),
`topology` and `server` (what the bus must look like, and the bus we bring along). What `jetstream`
is made of stands beside it: `wire` and `connection` (the bus as we need it), `appending`,
`reading`, `pull`, `consuming`, `services`, `micro`. Logs that lie in files are `segments` (of an
archive) and `kept` (they can only be read).
"""
