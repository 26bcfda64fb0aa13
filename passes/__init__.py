"""Graph in, graph out: passes over FX graphs, the step graph, and posing it as a problem."""
