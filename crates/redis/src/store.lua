-- What changes a resource, as one script, so that a server which knows one operation knows all.
--
-- ARGV[1] is given back, so that the reply is known to be this one's; ARGV[2] is the operation. All keys are in one
-- slot. A ticket stands in the hash of its resource, in the field of its variant, as `<nonce>:<when it ends>`, in
-- Redis' own milliseconds. Clock, records and log lie in the slot of the namespace. Nothing here trusts that a key holds what
-- larder put there: a key of another type reads as absent.

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

-- Whether the resource is being written: a hash beside its tickets tells by whom, and until when.
--
-- A mark is the time at which it ends, and `!` behind that, once another has written or purged the resource meanwhile.
local function ends(mark)
  return tonumber(string.match(mark, '^%d+') or 0)
end

local function is_marked(marks)
  local all = redis.pcall('HVALS', marks)
  for _, mark in ipairs(all.err and {} or all) do
    if ends(mark) > now() then return true end
  end
  return false
end

-- Takes from those who write the resource the right to store what they wrote; whether there are any.
local function disturb(marks)
  local all = redis.pcall('HKEYS', marks)
  local any = false
  for _, nonce in ipairs(all.err and {} or all) do
    local mark = redis.call('HGET', marks, nonce)
    if mark and ends(mark) > now() then
      any = true
      redis.call('HSET', marks, nonce, string.format('%.0f', ends(mark)) .. '!')
    end
  end
  return any
end

-- Keys: tickets, entry, base, marks. Arguments: field, nonce, life, what was seen (an id, nothing, or `*` for the unreadable),
-- and the rule that a variant belongs to, or nothing.
function operations.claim(tickets, entry, base)
  local marks = KEYS[4]
  local field, nonce, life, seen, rule = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
  if rule ~= '' and id(base) ~= rule then return 'moved' end
  if seen ~= '*' and id(entry) ~= seen then
    local bytes = redis.pcall('GET', entry)
    if type(bytes) == 'string' then return 'found', bytes end
    if seen ~= '' then return 'moved' end
  end
  if redis.call('EXISTS', marks) == 1 and is_marked(marks) then return 'marked' end
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

-- Keys: tickets, base, value, marks. Arguments: field, nonce, life. A purge by who holds a ticket, which alone stays valid.
function operations.supersede(tickets, base, value)
  if holder(tickets, ARGV[3]) ~= ARGV[4] then return 'void' end
  disturb(KEYS[4])
  redis.call('UNLINK', base, value)
  redis.call('UNLINK', tickets)
  place(tickets, ARGV[3], ARGV[4], ARGV[5])
  return 'superseded'
end

-- What entries and manifests of entries begin with: nothing else is written into.
local ENTRY, MANIFEST = 'LRDR\4', 'LRDC\2'

-- Writes into an entry since when it is stale, where that stands in all of them.
local function make_stale(key)
  local head = redis.pcall('GETRANGE', key, 0, 4)
  if head ~= ENTRY and head ~= MANIFEST then return redis.call('UNLINK', key) end
  redis.call('SETRANGE', key, 24, struct.pack('<I8', now()))
  return 1
end

-- Keys: tickets, base, value, marks. Arguments: whether what is there is made stale (soft) or removed (hard). One hash holds all
-- tickets of the resource, so every fill in flight is void; whoever writes it goes on, and does not store what was written.
function operations.purge(tickets, base, value)
  disturb(KEYS[4])
  local had
  if ARGV[3] == 'soft' then
    had = make_stale(base) + make_stale(value)
  else
    had = redis.call('UNLINK', base, value)
  end
  local fields = redis.pcall('HKEYS', tickets)
  for _, field in ipairs(fields.err and {} or fields) do
    if string.sub(field, 1, 1) == 'w' then wake(tickets, string.sub(field, 2)) end
  end
  redis.call('UNLINK', tickets)
  if had > 0 then return 'had' end
  return 'none'
end

-- Keys: tickets, base, value, marks. Arguments: how it is purged, nonce, life. Purges, and has nothing be stored for as long.
function operations.mark(tickets, base, value)
  local marks = KEYS[4]
  local mark = string.format('%.0f', now() + ARGV[5])
  if disturb(marks) then mark = mark .. '!' end
  -- First of all, as a full server would else refuse to take note of it.
  local had = operations.purge(tickets, base, value)
  if type(redis.pcall('HSET', marks, ARGV[4], mark)) == 'table' then
    redis.call('UNLINK', marks)
    redis.call('HSET', marks, ARGV[4], mark)
  end
  local left = redis.call('PTTL', marks)
  if left < tonumber(ARGV[5]) then redis.call('PEXPIRE', marks, ARGV[5]) end
  return had
end

-- Keys: marks. Arguments: nonce, life.
function operations.remark(marks)
  local mark = redis.pcall('HGET', marks, ARGV[3])
  if type(mark) ~= 'string' or ends(mark) <= now() then return 'void' end
  local suffix = string.match(mark, '!$') or ''
  redis.call('HSET', marks, ARGV[3], string.format('%.0f', now() + ARGV[4]) .. suffix)
  if redis.call('PTTL', marks) < tonumber(ARGV[4]) then redis.call('PEXPIRE', marks, ARGV[4]) end
  return 'renewed'
end

-- Keys: marks. Arguments: nonce.
function operations.unmark(marks)
  redis.pcall('HDEL', marks, ARGV[3])
  return 'unmarked'
end

-- Keys: marks, entry. Arguments: nonce, life, entry. Ends a mark, and stores what was written, if nobody else has written or
-- purged the resource since it was made.
function operations.conclude(marks, entry)
  local mark = redis.pcall('HGET', marks, ARGV[3])
  local is_alone = type(mark) == 'string' and string.match(mark, '^%d+$') and ends(mark) > now()
  -- First of all: Redis refuses a script for lack of memory only as long as it has written nothing.
  if is_alone then redis.call('SET', entry, ARGV[5], 'PX', ARGV[4]) end
  redis.pcall('HDEL', marks, ARGV[3])
  return is_alone and 'stored' or 'void'
end

-- Keys: marks. What a purge by pattern does to those who write.
function operations.disturb(marks)
  disturb(marks)
  return 'disturbed'
end

-- How many invalidations are logged, about.
local LONGEST_LOG = 10000

-- A time of the clock as it was stored; nothing, if it is none that could be counted on from.
local function clock_time(text)
  if type(text) ~= 'string' or #text > 16 or not string.match(text, '^%d+$') then return nil end
  if tonumber(text) > 9000000000000000 then return nil end
  return text
end

-- The clock of a namespace advances with every invalidation and with nothing else. It is never behind Redis' own time when
-- it does, so that one which was lost begins beyond whatever it had shown.
local function advance(clock, log)
  -- A full server refuses scripts what takes memory as long as they have written nothing; this is nothing that does.
  redis.pcall('XTRIM', log, 'MAXLEN', '~', LONGEST_LOG)
  local time = redis.call('TIME')
  local at = time[1] * 1000000 + time[2]
  local last = tonumber(clock_time(redis.pcall('GET', clock)) or '0')
  if at <= last then at = last + 1 end
  at = string.format('%.0f', at)
  redis.call('SET', clock, at)
  return at
end


-- A record tells when a tag, or the namespace, was invalidated last: `<hard>:<soft>`. What has none may have been invalidated
-- at any time until now.
local function record(text)
  if type(text) ~= 'string' then return nil end
  local gone, stale = string.match(text, '^(%d+):(%d+)$')
  if not clock_time(gone) or not clock_time(stale) then return nil end
  return gone, stale
end

local function keep(key, gone, stale, life)
  local text = gone .. ':' .. stale
  if life then redis.call('SET', key, text, 'PX', life) else redis.call('SET', key, text) end
  return text
end

-- The id of the last entry of a log.
local function last_of(log)
  local reply = redis.pcall('XREVRANGE', log, '+', '-', 'COUNT', 1)
  if reply.err or not reply[1] then return '0-0' end
  return reply[1][1]
end

-- Tells those who listen; that nobody may publish is no reason to fail. Before a channel that only the servers of one slot of
-- a cluster tell of stands `!`; where they know none of those, all tell of it.
local function tell(channel, text)
  local shard = string.match(channel, '^!(.*)$')
  if not shard or type(redis.pcall('SPUBLISH', shard, text)) == 'table' then
    redis.pcall('PUBLISH', shard or channel, text)
  end
end

-- Logs what was invalidated, and tells of it.
local function append(log, channel, sender, at, line)
  local before = last_of(log)
  local text = sender .. '|' .. at .. '|' .. line
  redis.pcall('XTRIM', log, 'MAXLEN', '~', LONGEST_LOG)
  local id = redis.pcall('XADD', log, '*', 'before', before, 'text', text)
  if type(id) == 'table' and id.err then
    if not string.find(id.err, 'WRONGTYPE', 1, true) then error(id.err, 0) end
    redis.call('UNLINK', log)
    id = redis.call('XADD', log, '*', 'before', before, 'text', text)
  end
  if type(id) == 'table' then id = id.ok end
  tell(channel, id .. '|' .. before .. '|' .. text)
  return id
end

-- Keys: the clock, the record of the namespace, the log. Arguments: the id of the last entry that is known, or nothing.
-- Answers what both show, the id of the last entry, and entries that are not known. It writes what is missing only.
function operations.beat(clock, generation, log)
  local held, last = redis.pcall('MGET', clock, generation), last_of(log)
  -- A user who may read only one key at a time.
  if held.err then held = {redis.pcall('GET', clock), redis.pcall('GET', generation)} end
  local at = clock_time(held[1]) or advance(clock, log)
  local gone, stale = record(held[2])
  local answer = {at, gone and gone .. ':' .. stale or keep(generation, at, '0'), last}
  if ARGV[3] == '' or ARGV[3] == last then return answer end
  local missed = redis.pcall('XRANGE', log, '(' .. ARGV[3], '+', 'COUNT', 1000)
  for _, entry in ipairs(missed.err and {} or missed) do
    answer[#answer + 1] = entry[1] .. '|' .. entry[2][2] .. '|' .. (entry[2][4] or '')
  end
  return answer
end

-- Keys: the clock, the log, and the records of tags, made anew where there is none. Arguments: the life of a record.
function operations.recall(clock, log)
  local at = clock_time(redis.pcall('GET', clock)) or advance(clock, log)
  local answer = {at}
  for i = 3, #KEYS do
    local gone, stale = record(redis.pcall('GET', KEYS[i]))
    if not gone then
      gone, stale = at, '0'
      -- A full server may refuse; then it is made anew by whoever asks next.
      redis.pcall('SET', KEYS[i], gone .. ':' .. stale, 'PX', ARGV[3])
    end
    answer[i - 1] = gone .. ':' .. stale
  end
  return answer
end

-- Keys: the clock, the log, and the records of tags, or that of the namespace. Arguments: the life of a record, channel,
-- sender, `h` or `s`, and what is invalidated.
function operations.invalidate(clock, log)
  local life, channel, sender, mode, line = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
  if string.sub(line, 1, 1) == 'a' then life = nil end
  local at = advance(clock, log)
  for i = 3, #KEYS do
    local gone, stale = record(redis.pcall('GET', KEYS[i]))
    if mode == 's' and gone then keep(KEYS[i], gone, at, life) else keep(KEYS[i], at, stale or '0', life) end
  end
  return {at, append(log, channel, sender, at, mode .. line)}
end

-- The same for a namespace whose record is still what it is known to have been.
function operations.recover(clock, log)
  if redis.pcall('GET', KEYS[3]) ~= ARGV[8] then return {} end
  return operations.invalidate(clock, log)
end

-- Keys: the log. Arguments: channel, sender, `h` or `s`, and what was invalidated.
function operations.log(log)
  return {append(log, ARGV[3], ARGV[4], '0', ARGV[5] .. ARGV[6])}
end

return {ARGV[1], operations[ARGV[2]](KEYS[1], KEYS[2], KEYS[3])}
