"""Configurations of other frameworks, in, out, and looked at.

    from_command --> make_plan (Configuration -> pins -> Plan) --> divided_weights
    to_command   --> of_plan (Plan -> Configuration), tp_plan
    lint_command --> checks, make_plan
"""
