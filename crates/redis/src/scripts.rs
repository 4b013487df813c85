//! The scripts that run inside Redis, each in one slot, and each giving back the echo it was sent.
//!
//! A ticket stands in the hash of its resource, in the field of its variant, as `<nonce>:<when it ends, in Redis' own
//! milliseconds>`. Nothing here trusts that a key holds what larder put there: a key of another type reads as absent.

use crate::client;
use std::sync::LazyLock;

/// A script, and the digest by which Redis knows it.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) text: String,
    pub(crate) digest: String,
}

impl Script {
    fn new(body: &str) -> Self {
        let text = format!("{PRELUDE}{body}");
        let digest = client::digest(&text);
        Self { text, digest }
    }
}

const PRELUDE: &str = "\
local echo = ARGV[1]
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
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
";

/// Keys: entry, tickets, base. Arguments: echo, field, what was seen (an id, nothing, or `*` for the unreadable), the
/// rule that a variant belongs to or nothing, nonce, life in milliseconds.
pub(crate) static CLAIM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "\
local function id(key)
  local bytes = redis.pcall('GETRANGE', key, 8, 23)
  if type(bytes) == 'string' then return bytes end
  return ''
end
if ARGV[4] ~= '' and id(KEYS[3]) ~= ARGV[4] then return {echo, 'moved'} end
if ARGV[3] ~= '*' and id(KEYS[1]) ~= ARGV[3] then
  local entry = redis.pcall('GET', KEYS[1])
  if type(entry) == 'string' then return {echo, 'found', entry} end
end
local other = holder(KEYS[2], ARGV[2])
if other and other ~= ARGV[5] then return {echo, 'held'} end
place(KEYS[2], ARGV[2], ARGV[5], ARGV[6])
return {echo, 'granted'}
",
    )
});

/// Keys: tickets. Arguments: echo, field, nonce, life in milliseconds.
pub(crate) static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "\
if holder(KEYS[1], ARGV[2]) ~= ARGV[3] then return {echo, 'void'} end
place(KEYS[1], ARGV[2], ARGV[3], ARGV[4])
return {echo, 'renewed'}
",
    )
});

/// Keys: tickets. Arguments: echo, field, nonce.
pub(crate) static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "\
if holder(KEYS[1], ARGV[2]) ~= ARGV[3] then return {echo, 'void'} end
redis.call('HDEL', KEYS[1], ARGV[2])
return {echo, 'released'}
",
    )
});

/// Keys: entry, tickets, and base if there is a rule. Arguments: echo, field, nonce, life in milliseconds, entry, rule.
pub(crate) static FILL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "\
if holder(KEYS[2], ARGV[2]) ~= ARGV[3] then return {echo, 'void'} end
redis.call('HDEL', KEYS[2], ARGV[2])
redis.call('SET', KEYS[1], ARGV[5], 'PX', ARGV[4])
if KEYS[3] and (redis.pcall('GET', KEYS[3]) ~= ARGV[6] or redis.call('PTTL', KEYS[3]) < tonumber(ARGV[4])) then
  redis.call('SET', KEYS[3], ARGV[6], 'PX', ARGV[4])
end
return {echo, 'stored'}
",
    )
});

/// Keys: base, tickets. Arguments: echo.
pub(crate) static PURGE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "\
local had = redis.call('UNLINK', KEYS[1])
redis.call('UNLINK', KEYS[2])
return {echo, had == 1 and 'had' or 'none'}
",
    )
});
