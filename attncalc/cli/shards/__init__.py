"""Processing of many structures in shards: by processes, job arrays or a cluster; restartable.

The results of each shard of the input are files in OUTPUT.parts. The last of them, its report, is
written when the others are complete, so a shard with a report is done. Results of a shard do not
depend on the process that computes them, so the output is the same for any number of workers.
"""
