"""The reconcile loop of one guest, and what serves it.

serve.py            from attach to detach, through resets of the guest and back
loop.py             one epoch after another over one attachment
job.py              what one run of the daemon is to do
endpoints.py        the status socket and the HTTP port, which outlive an attachment
request_handler.py  requests, between two epochs
reload.py           a configuration that is read again
change_log.py       log lines for changes of sites
dry_run.py          what would be attached to; changes nothing
"""
