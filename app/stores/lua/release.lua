-- KEYS[1]: the lease. ARGV: nonce, owner. Gives the nonce.
if redis.call('GET', KEYS[1]) == ARGV[2] then
  redis.call('DEL', KEYS[1])
end
return {ARGV[1]}
