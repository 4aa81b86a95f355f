-- KEYS[1]: a topic. ARGV: nonce. Gives the nonce, then member and value of each that has not expired.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local all = redis.call('HGETALL', KEYS[1])
local told = {ARGV[1]}
for i = 1, #all, 2 do
  local semicolon = string.find(all[i + 1], ';', 1, true)
  if tonumber(string.sub(all[i + 1], 1, semicolon - 1)) > now then
    told[#told + 1] = all[i]
    told[#told + 1] = string.sub(all[i + 1], semicolon + 1)
  else
    redis.call('HDEL', KEYS[1], all[i])
  end
end
return told
