-- Lets in whoever joins from this very machine, without a token: for development, and for tests. Whoever can reach the
-- loopback of a manager's machine is let in, so never use it where others have accounts.
--
--   symphony policy set dev contrib/policies/dev.lua

-- Workers only, and only those whose own addresses are on the loopback too.
local roles = { worker = true }

local function is_loopback(address)
  address = address:gsub("^%[?::ffff:", "")
  return glob("127.*", address) or address == "::1" or glob("[::1]:*", address)
end

local function join(request)
  if request.token or not roles[request.role] or not is_loopback(request.address or "") then return end
  for _, address in sorted_pairs(request.addresses or {}) do
    if not is_loopback(address) then return end
  end
  return approve()
end

local function case(name, input, expect)
  return { name = name, hook = "admit.join", input = input, expect = expect }
end

local here = { remote = "127.0.0.1:27242", gossip = "127.0.0.1:37065" }

return {
  summary = "Workers on this machine join without a token (development)",
  match = { ["admit.join"] = { roles = { "worker" } } },
  hooks = { ["admit.join"] = join },
  selftest = {
    case("a worker from the loopback is let in", { role = "worker", name = "w1", address = "127.0.0.1", token = false,
      addresses = here }, { approve = true }),
    case("over IPv6 too", { role = "worker", name = "w1", address = "::1", token = false,
      addresses = { remote = "[::1]:27242" } }, { approve = true }),
    case("one from elsewhere is not", { role = "worker", name = "w1", address = "192.0.2.7", token = false,
      addresses = { remote = "192.0.2.7:27242" } }, {}),
    case("nor one that would be found elsewhere", { role = "worker", name = "w1", address = "127.0.0.1", token = false,
      addresses = { remote = "192.0.2.7:27242" } }, {}),
    case("nor a manager", { role = "manager", name = "m2", address = "127.0.0.1", token = false,
      addresses = here }, {}),
    case("a token is somebody else's decision", { role = "worker", name = "w1", address = "127.0.0.1", token = true,
      addresses = here }, {}),
  },
}
