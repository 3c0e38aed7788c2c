"""Moving banks, data sets and published weights in and out. Installed as `m3dt_agent.hub`."""
