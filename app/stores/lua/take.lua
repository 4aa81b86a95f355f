-- GCRA (ITU-T I.371). KEYS[1]: the meter, "used;at": seconds until it is as if never used, and the microsecond of
-- that statement. ARGV: nonce, cost, step (seconds one unit takes), window (seconds), slack (seconds), force (0 or 1).
-- Gives the nonce, what was used before, and whether the cost was taken.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local used, at = 0, now
local kept = redis.call('GET', KEYS[1])
if kept then
  local semicolon = string.find(kept, ';', 1, true)
  used = tonumber(string.sub(kept, 1, semicolon - 1))
  at = tonumber(string.sub(kept, semicolon + 1))
end
-- The server's clock may be set: forward it refills early, backward nothing is lost and nobody is banned.
local stepped_back = now < at
if not stepped_back then
  used = math.max(0, used - (now - at) / 1000000)
end
local cost, window = tonumber(ARGV[2]), tonumber(ARGV[4])
local after = math.max(0, used + cost * tonumber(ARGV[3]))
local taken = 1
if after - window > tonumber(ARGV[5]) and cost > 0 and ARGV[6] == '0' then
  taken = 0
end
if taken == 1 or stepped_back then
  local left = used
  if taken == 1 then left = after end
  if left > 0 then
    redis.call('SET', KEYS[1], string.format('%.17g;%.0f', left, now), 'PX', math.ceil(left * 1000) + 1)
  else
    redis.call('DEL', KEYS[1])
  end
end
return {ARGV[1], string.format('%.17g', used), taken}
