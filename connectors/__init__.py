"""Connector definitions per source, and the Kafka Connect client that applies, checks, pauses and removes them.

definition: settings -> the connector's JSON. rules: what a definition, ours or another's, must say.
preflight: whether the database and Kafka are fit; tables: whether each table is; topics: whether each topic is.
prepare: creates the publication and the topics.
connect: Kafka Connect's REST interface. slot: the replication slot as PostgreSQL shows it.

PostgreSQL is the first source; another database brings its own definition, rules and preflight beside these.
"""
