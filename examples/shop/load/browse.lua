-- Customers who browse: mostly products, some more often than others, and now and then a category.
--
--   wrk -t2 -c64 -d10s --latency -s examples/shop/load/browse.lua http://127.0.0.1:3000
--
-- The last line that it prints is for programs.

local PRODUCTS = 300
local CATEGORIES = {"books", "garden", "kitchen", "music", "tools"}

local threads = 0

function setup(thread)
  threads = threads + 1
  thread:set("seed", threads)
end

function init()
  math.randomseed(seed)
end

function request()
  if math.random() < 0.15 then
    return wrk.format("GET", "/categories/" .. CATEGORIES[math.random(#CATEGORIES)])
  end
  -- The square of an even number between 0 and 1: half of the requests are for a quarter of the products.
  local at = math.random()
  return wrk.format("GET", "/products/" .. 1 + math.floor(at * at * PRODUCTS))
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format("total requests=%d micros=%d p50=%d p99=%d max=%d failed=%d\n", summary.requests,
    summary.duration, latency:percentile(50), latency:percentile(99), latency.max, failed))
end
