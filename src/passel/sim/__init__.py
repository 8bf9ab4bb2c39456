"""Rollouts in virtual time, decided by the machines and planners of `passel.core` alone."""
