-- KEYS[1]: a hash of counters, and the epoch that they began in. ARGV: nonce, a new epoch, the epoch that is known to
-- have lost increments (or ''), the counter to count up (or ''). Gives the nonce, then the whole hash.
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch or epoch == ARGV[3] then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'epoch', ARGV[2])
end
if ARGV[4] ~= '' then
  redis.call('HINCRBY', KEYS[1], ARGV[4], 1)
end
local told = redis.call('HGETALL', KEYS[1])
table.insert(told, 1, ARGV[1])
return told
