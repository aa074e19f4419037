"""Floor 4: replay. Tape -> Graph -> passes -> Plan -> Program; derivatives are unknown here.

Reading order: graph, passes, layout, loops, fuse, plan, program. Every stage prints one line per node.
"""
