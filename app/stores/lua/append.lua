-- KEYS[1]: a log, a list. ARGV: nonce, the number of the first piece, milliseconds, pieces. Gives the nonce, and 1, or 0
-- where numbers before the first are missing. Numbers that are there stay as they are.
local length = redis.call('LLEN', KEYS[1])
local at = tonumber(ARGV[2])
if at > length then
  return {ARGV[1], 0}
end
for i = 4 + length - at, #ARGV do
  redis.call('RPUSH', KEYS[1], ARGV[i])
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {ARGV[1], 1}
