"""Graphs, plans and programs of the tiny models."""

from __future__ import annotations

import functools

import models

from partitioner import Cluster, Graph, Plan, Program, lower, search, trace


@functools.cache
def graph_of(name: str) -> Graph:
    return trace(*models.make(name, 2), compare=False)


@functools.cache
def plan_of(name: str, **pins: str | int) -> Plan:
    return search(graph_of(name), Cluster.load("local-cpu"), 8, pins)


def program_of(name: str, **pins: str | int) -> Program:
    return lower(graph_of(name), plan_of(name, micro_batch=2, **pins))
