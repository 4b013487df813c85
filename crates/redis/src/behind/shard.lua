-- What happens to one shard of what is written behind, as one script. ARGV[1] is given back; ARGV[2] is the operation. All keys
-- belong to the shard, and lie in one slot.
--
-- A write that waits is an entry of the shard's stream, which a group keeps for whoever holds the lease. What is known of a key
-- is a hash beside it: the sequence number of its last write, its value or that it is gone, and while that is not applied yet,
-- `dirty`; so long it has no end.

local GROUP, HOLDER = 'appliers', 'holder'

local operations = {}

local function number(text)
  return tonumber(type(text) == 'string' and text or '') or 0
end

-- Keys: clock, log, entry. Arguments: key, `s` or `r`, value, the most writes that may wait, channel, word.
function operations.put(clock, log, entry)
  if redis.call('XLEN', log) >= tonumber(ARGV[6]) then return {'full'} end
  local time = redis.call('TIME')
  local seq = math.max(time[1] * 1000000 + time[2], number(redis.call('GET', clock)) + 1)
  seq = string.format('%.0f', seq)
  -- First of all: Redis refuses a script for lack of memory only as long as it has written nothing.
  redis.call('XADD', log, '*', 'w', '1', 'key', ARGV[3], 'seq', seq, 'op', ARGV[4], 'value', ARGV[5])
  redis.call('SET', clock, seq)
  redis.call('UNLINK', entry)
  redis.call('HSET', entry, 'key', ARGV[3], 'seq', seq, 'dirty', '1', ARGV[4] == 's' and 'value' or 'gone', ARGV[5])
  redis.pcall('PUBLISH', ARGV[7], ARGV[8])
  return {'accepted', seq}
end

-- Keys: clock. The number of a write that is applied past those that wait.
function operations.number(clock)
  local time = redis.call('TIME')
  local seq = string.format('%.0f', math.max(time[1] * 1000000 + time[2], number(redis.call('GET', clock)) + 1))
  redis.call('SET', clock, seq)
  return {seq}
end

-- Keys: entry. Arguments: key, seq, `s` or `r`, value, life. A write has been applied past those that wait.
function operations.applied(entry)
  if number(redis.call('HGET', entry, 'seq')) >= tonumber(ARGV[4]) then return {'superseded'} end
  redis.call('UNLINK', entry)
  redis.call('HSET', entry, 'key', ARGV[3], 'seq', ARGV[4], ARGV[5] == 's' and 'value' or 'gone', ARGV[6])
  redis.call('PEXPIRE', entry, ARGV[7])
  return {'applied'}
end

-- The fields of a message, after its id and how often it was taken.
local function tell(answer, log, message)
  local fields = {}
  for i = 1, #message[2], 2 do fields[message[2][i]] = message[2][i + 1] end
  local pending = redis.call('XPENDING', log, GROUP, message[1], message[1], 1)
  local taken = pending[1] and pending[1][4] or 1
  for _, part in ipairs({message[1], tostring(taken), fields.w or '', fields.key or '', fields.seq or '', fields.op or '',
    fields.value or ''}) do
    answer[#answer + 1] = part
  end
end

-- Keys: lease, log. Arguments: nonce, life, the most messages, and where to go on among those that were taken before, or nothing.
-- Answers `held` when another has the lease; else how it is held, where to go on, and messages.
function operations.take(lease, log)
  local nonce, life, most, from = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
  local holder = redis.call('GET', lease)
  if holder and holder ~= nonce then return {'held'} end
  redis.call('SET', lease, nonce, 'PX', life)
  if not holder then
    from = '0-0'
    redis.pcall('XGROUP', 'CREATE', log, GROUP, '0', 'MKSTREAM')
  end
  if from ~= '' then
    local claimed = redis.call('XAUTOCLAIM', log, GROUP, HOLDER, 0, from, 'COUNT', most)
    local answer = {'taken', claimed[1] == '0-0' and '' or claimed[1]}
    for _, message in ipairs(claimed[2]) do
      if type(message) == 'table' and message[2] then tell(answer, log, message) end
    end
    return answer
  end
  local answer = {'taken', ''}
  local new = redis.pcall('XREADGROUP', 'GROUP', GROUP, HOLDER, 'COUNT', most, 'STREAMS', log, '>')
  if type(new) == 'table' and new.err then
    redis.call('XGROUP', 'CREATE', log, GROUP, '0', 'MKSTREAM')
    return answer
  end
  for _, message in ipairs(new and new[1] and new[1][2] or {}) do tell(answer, log, message) end
  return answer
end

-- Keys: lease. Arguments: nonce, life.
function operations.keep(lease)
  if redis.call('GET', lease) ~= ARGV[3] then return {'lost'} end
  redis.call('PEXPIRE', lease, ARGV[4])
  return {'kept'}
end

-- Keys: lease. Arguments: nonce, channel, word.
function operations.leave(lease)
  if redis.call('GET', lease) == ARGV[3] then
    redis.call('UNLINK', lease)
    redis.pcall('PUBLISH', ARGV[4], ARGV[5])
  end
  return {'left'}
end

-- Keys: log, and entries. Arguments: the life of a value, and of what is gone; then for each message its id, its sequence
-- number, and which of the keys its entry is.
function operations.done(log)
  for i = 5, #ARGV, 3 do
    local id, seq, entry = ARGV[i], ARGV[i + 1], KEYS[tonumber(ARGV[i + 2])]
    redis.call('XACK', log, GROUP, id)
    redis.call('XDEL', log, id)
    if redis.call('HGET', entry, 'seq') == seq then
      redis.call('HDEL', entry, 'dirty')
      redis.call('PEXPIRE', entry, redis.call('HEXISTS', entry, 'gone') == 1 and ARGV[4] or ARGV[3])
    end
  end
  return {'done'}
end

-- Keys: log. Arguments: id, how often it has been tried.
function operations.tried(log)
  redis.call('XCLAIM', log, GROUP, HOLDER, 0, ARGV[3], 'RETRYCOUNT', ARGV[4], 'JUSTID')
  return {'noted'}
end

-- Keys: log, dead. Arguments: id, why.
function operations.bury(log, dead)
  local message = redis.call('XRANGE', log, ARGV[3], ARGV[3])[1]
  if message then
    local fields = message[2]
    fields[#fields + 1] = 'error'
    fields[#fields + 1] = ARGV[4]
    redis.call('XADD', dead, '*', unpack(fields))
  end
  redis.call('XACK', log, GROUP, ARGV[3])
  redis.call('XDEL', log, ARGV[3])
  return {'buried'}
end

-- Keys: dead. Arguments: after which id, the most.
function operations.buried(dead)
  local answer = {}
  for _, message in ipairs(redis.call('XRANGE', dead, '(' .. ARGV[3], '+', 'COUNT', ARGV[4])) do
    local fields = {}
    for i = 1, #message[2], 2 do fields[message[2][i]] = message[2][i + 1] end
    for _, part in ipairs({message[1], fields.key or '', fields.seq or '', fields.op or '', fields.value or '',
      fields.error or ''}) do
      answer[#answer + 1] = part
    end
  end
  return answer
end

-- Keys: dead, log, entry. Arguments: id, `retry` or `discard`, channel, word. What was written again since is what counts.
function operations.raise(dead, log, entry)
  local message = redis.call('XRANGE', dead, ARGV[3], ARGV[3])[1]
  if not message then return {'none'} end
  local fields, kept = {}, {}
  for i = 1, #message[2], 2 do
    fields[message[2][i]] = message[2][i + 1]
    if message[2][i] ~= 'error' then
      kept[#kept + 1] = message[2][i]
      kept[#kept + 1] = message[2][i + 1]
    end
  end
  local is_last = redis.call('HGET', entry, 'seq') == fields.seq
  if ARGV[4] == 'retry' and is_last then redis.call('XADD', log, '*', unpack(kept)) end
  if ARGV[4] == 'discard' and is_last then redis.call('UNLINK', entry) end
  redis.call('XDEL', dead, ARGV[3])
  redis.pcall('PUBLISH', ARGV[5], ARGV[6])
  return {is_last and 'raised' or 'superseded'}
end

-- Keys: log, dead. How many writes wait, and how many are given up.
function operations.count(log, dead)
  return {tostring(redis.call('XLEN', log)), tostring(redis.call('XLEN', dead))}
end

local function known(entry)
  local parts = redis.call('HMGET', entry, 'key', 'seq', 'value', 'gone', 'dirty')
  return {parts[1] or '', parts[2] or '', parts[3] and 'value' or parts[4] and 'gone' or '', parts[3] or '',
    parts[5] and 'dirty' or ''}
end

-- Keys: entry.
function operations.read(entry)
  return known(entry)
end

-- Keys: entry. Arguments: key, nonce, life. What is known of a key; if nothing is, whoever asks may say what there is, unless it
-- is written meanwhile.
function operations.open(entry)
  local answer = known(entry)
  if answer[3] == '' then
    redis.call('UNLINK', entry)
    redis.call('HSET', entry, 'key', ARGV[3], 'ticket', ARGV[4])
    redis.call('PEXPIRE', entry, ARGV[5])
  end
  return answer
end

-- Keys: entry. Arguments: nonce, life, `s` or `r`, value.
function operations.load(entry)
  if redis.call('HGET', entry, 'ticket') ~= ARGV[3] then return {'void'} end
  redis.call('HSET', entry, ARGV[5] == 's' and 'value' or 'gone', ARGV[6])
  redis.call('HDEL', entry, 'ticket')
  redis.call('PEXPIRE', entry, ARGV[4])
  return {'stored'}
end

-- Keys: entry.
function operations.forget(entry)
  if redis.call('HEXISTS', entry, 'dirty') == 1 then return {'dirty'} end
  redis.call('UNLINK', entry)
  return {'forgotten'}
end

return {ARGV[1], operations[ARGV[2]](KEYS[1], KEYS[2], KEYS[3])}
