-- KEYS[1]: a topic, a hash of members. ARGV: nonce, member, value, milliseconds. Gives the nonce.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], ARGV[2], string.format('%.0f', now + ARGV[4]) .. ';' .. ARGV[3])
redis.call('PEXPIRE', KEYS[1], math.max(tonumber(ARGV[4]), redis.call('PTTL', KEYS[1])))
return {ARGV[1]}
