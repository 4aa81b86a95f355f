-- KEYS[1]: a log, a list. ARGV: nonce, the first and the last number. Gives the nonce, how long the log is, and pieces.
local told = redis.call('LRANGE', KEYS[1], ARGV[2], ARGV[3])
table.insert(told, 1, redis.call('LLEN', KEYS[1]))
table.insert(told, 1, ARGV[1])
return told
