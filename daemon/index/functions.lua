#!lua name=livevec

-- The version rule, and every write that is made under it. One call is atomic for a document, its chunks and
-- its bookkeeping: all of them carry the hash tag of one bucket, so the keys derived here from the stem are in
-- the slot of the keys that are named, in a Redis Cluster too.
--
-- KEYS[1] bookkeeping of the document (hash): v version, h content hash, m metadata hash, n chunks;
--         a deleted document keeps v and x=1 and expires
-- KEYS[2] floor of the document's bucket (string): a version that every later write must beat
-- KEYS[3] stem of the document's keys; chunk i is the hash `stem:i`
--
-- Versions are text (daemon/core/version.py): L:era:commit_lsn:lsn:xid or S:era:xmin:xmax:xip,xip
-- Numbers in Lua are doubles, which cannot hold 64 bits: versions are compared as decimal strings.

local APPLIED, SUPERSEDED, CONFLICT, ABSENT = 1, 0, 2, 3

local function compare(a, b)
  if #a ~= #b then return #a < #b and -1 or 1 end
  if a == b then return 0 end
  return a < b and -1 or 1
end

-- A line break in an error would end the reply in the middle: the client loses the connection.
local function malformed(text)
  error({err = 'LIVEVEC malformed version: ' .. string.gsub(string.sub(text, 1, 100), '%c', '?')})
end

local function parse(text)
  local kind, era, first, second, third = string.match(text, '^([LS]):(%d+):(%d+):(%d+):([%d,]*)$')
  if not kind then malformed(text) end
  return {kind = kind, era = era, first = first, second = second, third = third}
end

-- What is stored has passed this. A number with a leading zero would be longer than it is large.
local function parse_argument(text)
  local version = parse(text)
  local xids = version.third
  local gap = (version.kind == 'L' or xids ~= '') and string.find(',' .. xids .. ',', ',,', 1, true)
  local several = version.kind == 'L' and string.find(xids, ',', 1, true)
  if gap or several or string.find(text, '[:,]0%d') then malformed(text) end
  return version
end

local function sees(snapshot, xid)
  if compare(xid, snapshot.second) >= 0 then return false end
  return not string.find(',' .. snapshot.third .. ',', ',' .. xid .. ',', 1, true)
end

local function running(snapshot)
  if snapshot.third == '' then return 0 end
  local _, commas = string.gsub(snapshot.third, ',', '')
  return commas + 1
end

-- Snapshots of one primary are nested sets: the one that has completed more is later.
local function snapshot_order(a, b)
  local order = compare(a.second, b.second)
  if order ~= 0 then return order end
  return running(b) - running(a)
end

local function replaces(write, stored)
  local era = compare(write.era, stored.era)
  if era ~= 0 then return era > 0 end
  if write.kind == 'L' and stored.kind == 'L' then
    local commit = compare(write.first, stored.first)
    if commit ~= 0 then return commit > 0 end
    return compare(write.second, stored.second) > 0
  end
  if write.kind == 'L' then return not sees(stored, write.third) end
  if stored.kind == 'L' then return sees(write, stored.third) end
  return snapshot_order(write, stored) >= 0
end

local function sweeps(floor, stored)
  if floor.kind == 'S' and stored.kind == 'S' and compare(floor.era, stored.era) == 0 then
    return snapshot_order(floor, stored) > 0
  end
  return replaces(floor, stored)
end

local function beats_all(version, meta_key, floor_key)
  local write = parse_argument(version)
  local stored = redis.call('HGET', meta_key, 'v')
  if stored and not replaces(write, parse(stored)) then return false end
  local floor = redis.call('GET', floor_key)
  return not (floor and not replaces(write, parse(floor)))
end

local function drop_chunks(stem, first, count)
  for i = first, count - 1 do redis.call('UNLINK', stem .. ':' .. i) end
end

local function stored_chunks(meta_key)
  return tonumber(redis.call('HGET', meta_key, 'n') or '0')
end

-- ARGV: version, content hash, metadata hash, chunks n, fields f,
--       f times (name, value) shared by all chunks, n times (text, embedding)
-- The chunks are written whole: what an earlier row left in a hash does not stay.
local function put(keys, args)
  local meta_key, floor_key, stem = keys[1], keys[2], keys[3]
  local chunks, fields = tonumber(args[4]), tonumber(args[5])
  if not chunks or not fields or #args ~= 5 + 2 * (chunks + fields) then
    error({err = 'LIVEVEC livevec_put: the arguments do not add up'})
  end
  if not beats_all(args[1], meta_key, floor_key) then return SUPERSEDED end
  local before = stored_chunks(meta_key)
  local at = 5 + 2 * fields
  for i = 0, chunks - 1 do
    local key = stem .. ':' .. i
    local hash = {'chunk', tostring(i), 'text', args[at + 1], 'embedding', args[at + 2]}
    for f = 6, 5 + 2 * fields do hash[#hash + 1] = args[f] end
    if i < before then redis.call('DEL', key) end
    redis.call('HSET', key, unpack(hash))
    at = at + 2
  end
  drop_chunks(stem, chunks, before)
  redis.call('HSET', meta_key, 'v', args[1], 'h', args[2], 'm', args[3], 'n', args[4])
  if redis.call('HDEL', meta_key, 'x') == 1 then redis.call('PERSIST', meta_key) end
  return APPLIED
end

-- ARGV: version, planned content hash, metadata hash, fields f, f times (name, value),
--       then the names of the fields to remove
-- For a row whose text did not change: the vector stays, the version moves on. Refused (CONFLICT: plan again)
-- if another text is stored by now or a chunk is gone.
local function touch(keys, args)
  local meta_key, floor_key, stem = keys[1], keys[2], keys[3]
  if not beats_all(args[1], meta_key, floor_key) then return SUPERSEDED end
  local stored = redis.call('HMGET', meta_key, 'h', 'm', 'n')
  if stored[1] ~= args[2] then return CONFLICT end
  local chunks = tonumber(stored[3])
  for i = 0, chunks - 1 do
    if redis.call('EXISTS', stem .. ':' .. i) == 0 then return CONFLICT end
  end
  if stored[2] ~= args[3] then
    local fields = tonumber(args[4])
    for i = 0, chunks - 1 do
      if fields > 0 then redis.call('HSET', stem .. ':' .. i, unpack(args, 5, 4 + 2 * fields)) end
      if #args > 4 + 2 * fields then redis.call('HDEL', stem .. ':' .. i, unpack(args, 5 + 2 * fields)) end
    end
  end
  redis.call('HSET', meta_key, 'v', args[1], 'm', args[3])
  return APPLIED
end

-- ARGV: version, lifetime of the marker in milliseconds
local function delete(keys, args)
  local meta_key, floor_key, stem = keys[1], keys[2], keys[3]
  if not beats_all(args[1], meta_key, floor_key) then return SUPERSEDED end
  local there = redis.call('HEXISTS', meta_key, 'h') == 1
  drop_chunks(stem, 0, stored_chunks(meta_key))
  redis.call('HDEL', meta_key, 'h', 'm', 'n')
  redis.call('HSET', meta_key, 'v', args[1], 'x', '1')
  redis.call('PEXPIRE', meta_key, args[2])
  return there and APPLIED or ABSENT
end

-- KEYS[1] floor; ARGV: version
local function raise_floor(keys, args)
  local version, floor = parse_argument(args[1]), redis.call('GET', keys[1])
  if floor and not replaces(version, parse(floor)) then return SUPERSEDED end
  redis.call('SET', keys[1], args[1])
  return APPLIED
end

-- ARGV: version. Removes the document (or marker) if the sweep's version is newer than it.
local function sweep(keys, args)
  local meta_key, stem = keys[1], keys[3]
  local version, stored = parse_argument(args[1]), redis.call('HGET', meta_key, 'v')
  if not stored then return ABSENT end
  if not sweeps(version, parse(stored)) then return SUPERSEDED end
  drop_chunks(stem, 0, stored_chunks(meta_key))
  redis.call('UNLINK', meta_key)
  return APPLIED
end

-- ARGV: content hash. The document's vectors, in the order of its chunks, if that is its text; else none.
local function vectors(keys, args)
  local bookkeeping = redis.call('HMGET', keys[1], 'h', 'n')
  if bookkeeping[1] ~= args[1] then return {} end
  local found = {}
  for i = 0, tonumber(bookkeeping[2]) - 1 do
    local vector = redis.call('HGET', keys[3] .. ':' .. i, 'embedding')
    if not vector then return {} end
    found[i + 1] = vector
  end
  return found
end

-- The field that stands for the process itself. One that was started anew has lost what was not on disk yet, which
-- no position shows that was not moved in between.
local SERVER = '@server'

local function position(key, field)
  if field == SERVER then return string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') end
  return redis.call('HGET', key, field) or ''
end

-- KEYS[1] positions (hash); ARGV: times (field, expected value or '', new value)
-- Compare and set, all or nothing. Answers 1, or the fields whose value is not the expected one, each with its
-- value: this is not the Redis that was written to.
local function advance(keys, args)
  local differing = {}
  for i = 1, #args, 3 do
    local stored = position(keys[1], args[i])
    if stored ~= args[i + 1] then
      differing[#differing + 1] = args[i]
      differing[#differing + 1] = stored
    end
  end
  if #differing > 0 then return differing end
  for i = 1, #args, 3 do
    if args[i] ~= SERVER then redis.call('HSET', keys[1], args[i], args[i + 2]) end
  end
  return APPLIED
end

-- KEYS[1] marks (hash: reason -> since); ARGV: times (reason, since)
-- Removes each mark that is still the one that was read: one that was set again meanwhile stays.
local function clear_marks(keys, args)
  local cleared = 0
  for i = 1, #args, 2 do
    if redis.call('HGET', keys[1], args[i]) == args[i + 1] then
      cleared = cleared + redis.call('HDEL', keys[1], args[i])
    end
  end
  return cleared
end

redis.register_function('livevec_put', put)
redis.register_function('livevec_touch', touch)
-- What frees memory must work when there is none left.
redis.register_function{function_name = 'livevec_delete', callback = delete, flags = {'allow-oom'}}
redis.register_function('livevec_raise_floor', raise_floor)
redis.register_function{function_name = 'livevec_sweep', callback = sweep, flags = {'allow-oom'}}
redis.register_function('livevec_advance', advance)
redis.register_function{function_name = 'livevec_clear_marks', callback = clear_marks, flags = {'allow-oom'}}
redis.register_function{function_name = 'livevec_vectors', callback = vectors, flags = {'no-writes'}}
