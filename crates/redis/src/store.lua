-- What changes a resource, as one script, so that a server which knows one operation knows all.
--
-- ARGV[1] is given back, so that the reply is known to be this one's; ARGV[2] is the operation. All keys are in one
-- slot. A ticket stands in the hash of its resource, in the field of its variant, as `<nonce>:<when it ends>`, in
-- Redis' own milliseconds. What belongs to tags lies in the slot of the namespace. Nothing here trusts that a key holds what larder put there: a key of another type reads as
-- absent.

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Stands in a ticket's place where the answer was not of a kind that is stored.
local UNCACHEABLE = string.rep('-', 32)

-- The nonce of the ticket that is valid, if there is one.
local function holder(tickets, field)
  local ticket = redis.pcall('HGET', tickets, field)
  if type(ticket) ~= 'string' then return false end
  local ends = tonumber(string.sub(ticket, 34))
  if not ends or ends <= now() then return false end
  return string.sub(ticket, 1, 32)
end

local function place(tickets, field, nonce, life)
  local ticket = nonce .. ':' .. string.format('%.0f', now() + life)
  local placed = redis.pcall('HSET', tickets, field, ticket)
  if type(placed) == 'table' then
    if string.find(placed.err, 'WRONGTYPE', 1, true) then redis.call('UNLINK', tickets) end
    redis.call('HSET', tickets, field, ticket)
  end
  redis.call('PEXPIRE', tickets, life)
end

-- The id of an entry, or of the manifest of one; it stands at the same place in both.
local function id(key)
  local bytes = redis.pcall('GETRANGE', key, 8, 23)
  if type(bytes) == 'string' then return bytes end
  return ''
end

-- Tells those who wait for a ticket that it is theirs to try. Who waits has left the channel to be told on beside the
-- ticket; that nobody may publish there is no reason to fail.
local function wake(tickets, field)
  local channel = redis.pcall('HGET', tickets, 'w' .. field)
  if type(channel) ~= 'string' then return end
  redis.call('HDEL', tickets, 'w' .. field)
  redis.pcall('PUBLISH', channel, tickets .. '|' .. field)
end

local operations = {}

-- Keys: tickets, entry, base. Arguments: field, nonce, life, what was seen (an id, nothing, or `*` for the unreadable),
-- and the rule that a variant belongs to, or nothing.
function operations.claim(tickets, entry, base)
  local field, nonce, life, seen, rule = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
  if rule ~= '' and id(base) ~= rule then return 'moved' end
  if seen ~= '*' and id(entry) ~= seen then
    local bytes = redis.pcall('GET', entry)
    if type(bytes) == 'string' then return 'found', bytes end
  end
  local other = holder(tickets, field)
  if other == UNCACHEABLE then return 'uncacheable' end
  if other and other ~= nonce then return 'held' end
  place(tickets, field, nonce, life)
  return 'granted'
end

-- Keys: tickets. Arguments: field, nonce, life.
function operations.renew(tickets)
  if holder(tickets, ARGV[3]) ~= ARGV[4] then return 'void' end
  place(tickets, ARGV[3], ARGV[4], ARGV[5])
  return 'renewed'
end

-- Keys: tickets. Arguments: field, nonce, and for how long the answer counts as one that is not stored, or 0.
function operations.release(tickets)
  if holder(tickets, ARGV[3]) ~= ARGV[4] then return 'void' end
  redis.call('HDEL', tickets, ARGV[3])
  wake(tickets, ARGV[3])
  if ARGV[5] ~= '0' then place(tickets, ARGV[3], UNCACHEABLE, ARGV[5]) end
  return 'released'
end

-- Keys: tickets. Arguments: field, channel. Leaves word where to tell when the ticket is used or given back.
function operations.await(tickets)
  local other = holder(tickets, ARGV[3])
  if not other or other == UNCACHEABLE then return 'free' end
  redis.call('HSET', tickets, 'w' .. ARGV[3], ARGV[4])
  return 'held'
end

-- Keys: tickets, entry, and base if there is a rule. Arguments: field, nonce, life, entry, rule.
function operations.fill(tickets, entry, base)
  local field, nonce, life, bytes, rule = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
  if holder(tickets, field) ~= nonce then return 'void' end
  -- First of all: Redis refuses a script for lack of memory only as long as it has written nothing.
  redis.call('SET', entry, bytes, 'PX', life)
  if base and (redis.pcall('GET', base) ~= rule or redis.call('PTTL', base) < tonumber(life)) then
    redis.call('SET', base, rule, 'PX', life)
  end
  redis.call('HDEL', tickets, field)
  wake(tickets, field)
  return 'stored'
end

-- Keys: tickets, base. Arguments: field, nonce, life. A purge by who holds a ticket, which alone stays valid.
function operations.supersede(tickets, base)
  if holder(tickets, ARGV[3]) ~= ARGV[4] then return 'void' end
  redis.call('UNLINK', base)
  redis.call('UNLINK', tickets)
  place(tickets, ARGV[3], ARGV[4], ARGV[5])
  return 'superseded'
end

-- Keys: tickets, base. One hash holds the tickets of all variants, so every fill in flight is void.
function operations.purge(tickets, base)
  local had = redis.call('UNLINK', base)
  local fields = redis.pcall('HKEYS', tickets)
  for _, field in ipairs(fields.err and {} or fields) do
    if string.sub(field, 1, 1) == 'w' then wake(tickets, string.sub(field, 2)) end
  end
  redis.call('UNLINK', tickets)
  if had == 1 then return 'had' end
  return 'none'
end

-- The clock of a namespace advances with every invalidation and with nothing else. It is never behind Redis' own time when
-- it does, so that one which was lost begins beyond whatever it had shown.
local function advance(clock)
  local time = redis.call('TIME')
  local at = time[1] * 1000000 + time[2]
  local last = tonumber(redis.pcall('GET', clock) or '') or 0
  if at <= last then at = last + 1 end
  redis.call('SET', clock, string.format('%.0f', at))
  return string.format('%.0f', at)
end

local function shown(clock)
  local at = redis.pcall('GET', clock)
  if type(at) == 'string' and tonumber(at) then return at end
  return advance(clock)
end

-- Keys: the clock, and the records of tags. Arguments: the life of a record. A tag without one may have been invalidated at
-- any time until now.
function operations.recall()
  local answer = {shown(KEYS[1])}
  for i = 2, #KEYS do
    local at = redis.pcall('GET', KEYS[i])
    if type(at) ~= 'string' or not tonumber(at) then
      at = answer[1]
      redis.call('SET', KEYS[i], at, 'PX', ARGV[3])
    end
    answer[i] = at
  end
  return answer
end

-- Keys: the clock, and the records of tags. Arguments: the life of a record.
function operations.invalidate()
  local at = advance(KEYS[1])
  for i = 2, #KEYS do redis.call('SET', KEYS[i], at, 'PX', ARGV[3]) end
  return {at}
end

return {ARGV[1], operations[ARGV[2]](KEYS[1], KEYS[2], KEYS[3])}
