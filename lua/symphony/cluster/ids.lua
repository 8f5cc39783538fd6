-- Ids: 26 characters of base32 that sort by the time they were made. 6 bytes of milliseconds, 10 random ones.
local M = {}

-- Pure: @ms since 1970, @random 10 bytes, @base32 the encoder.
function M.make(ms, random, base32)
  return base32(string.pack(">I6", ms) .. random)
end

function M.new()
  local crypto, sys = require "sym.crypto", require "sym.sys"
  return M.make(math.floor(sys.now() * 1000), crypto.random(10), crypto.base32)
end

return M
