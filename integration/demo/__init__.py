"""The demo's upstream: real trades replayed, simulated instruments between real daily prices, seeded faults.

A producer like any other: the service imports nothing of it, and it imports only the wire contract in `integration.market`.
"""
