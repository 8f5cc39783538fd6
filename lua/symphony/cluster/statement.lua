-- What a joiner says with its key, in the subject of its certificate request: when it asks, and the CA that it saw. A
-- request that says nothing would be good for whoever has seen it, for ever and in every cluster.
--   <seconds since 1970, 10 digits>-<sha256 of the CA certificate, base36>
local crypto = require "sym.crypto"
local errors = require "symphony.errors"

local M = {}

M.LIFE = 3600 -- as far as clocks may be apart: what the certificates are backdated by

-- @ca: raw sha256 of the CA certificate. Pure.
function M.make(ca, now)
  return ("%010d-%s"):format(math.floor(now), crypto.base36(ca))
end

local function time(at) return os.date("!%Y-%m-%d %H:%M:%S UTC", math.floor(at)) end

-- Is hostile @text a statement for one of the CAs with these digests (raw), of about @now? true; nil, err. Pure.
function M.check(text, cas, now)
  local at, digest = text:match("^(%d%d%d%d%d%d%d%d%d%d)%-(%w+)$")
  if not at then
    return nil, errors.new("invalid", "the certificate request does not say when and for which cluster it was made",
      "is symphony on the joining machine as new as here?")
  end
  at = tonumber(at)
  local known = false
  for _, ca in ipairs(cas) do known = known or digest == crypto.base36(ca) end
  if not known then
    return nil, errors.new("denied", "the certificate request was made for another cluster, with another CA",
      "join with a token of this cluster")
  end
  if math.abs(now - at) > M.LIFE then
    return nil, errors.new("denied",
      ("the certificate request is of %s, and here it is %s"):format(time(at), time(now)),
      "the clocks of the joining machine and of the managers may be an hour apart: set them right, then join again")
  end
  return true
end

return M
