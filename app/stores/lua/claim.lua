-- KEYS[1]: the lease. ARGV: nonce, owner, milliseconds. Gives the nonce, and 1 where the owner has it now.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[2] then
  return {ARGV[1], 0}
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return {ARGV[1], 1}
