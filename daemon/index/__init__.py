"""The projection in Redis, and every call of redis-py: keys, schema, registry, writes under the version rule, reads.

`connection` opens the client and translates its errors; `layout` names the keys.
"""
