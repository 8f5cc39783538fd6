local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local identity = require "symphony.cluster.identity"
local join = require "symphony.cluster.join"
local json = require "symphony.json"
local pki = require "symphony.cluster.pki"

local NOW = 1700000000
local key = crypto.key_generate()
local ca_key, ca = pki.new_ca("0cluster", NOW)
local pin = crypto.unhex(crypto.cert_info(ca).digest)
local certificate = pki.sign(ca_key, ca, crypto.csr(key, "m-02"),
  { node_id = "0node", role = "manager", raft_node_id = 2 }, "0cluster", NOW)

-- The certificates are these in every run, or hardly anything would get past them: the text has names for them.
local NAMES = { ["$ca"] = ca, ["$certificate"] = certificate }

local function check(text)
  local w = json.decode(text)
  if type(w) == "table" then
    for _, name in ipairs { "ca", "certificate" } do w[name] = NAMES[w[name]] or w[name] end
  end
  local ok, err = join.check_welcome(w, key, "manager", pin)
  if not ok then
    assert(errors.is(err) and err.code == "protocol" and #err.message < 1000, tostring(err))
    return
  end
  local doc = { format = 1, node_id = w.node_id, raft_node_id = w.raft_node_id, cluster_id = w.cluster_id,
    role = w.role, name = w.name, starts = 0, folder = "f", managers = json.array(w.managers), removed = false,
    advertise = { raft = "a:1", remote = "a:2", gossip = "a:3" } }
  assert(identity.parse(json.encode(doc)))
  assert(w.node_id == "0node" and w.cluster_id == "0cluster")
end

return {
  check = check,
  seeds = {
    json.encode { node_id = "0node", raft_node_id = 2, name = "m-02", role = "manager", cluster_id = "0cluster",
      ca = "$ca", certificate = "$certificate", addresses = {}, managers = { "10.0.0.1:27242", "[fd00::1]:27242" } },
  },
  words = { '"managers":', '"managers":[]', '"managers":{"a":1}', '["a"]', "[7]", '"raft_node_id":', "-1", "0", "1e15",
    "1e17", '"name":', '""', '"a b"', "null",
    "{}", "[]", '"$ca"', '"$certificate"', ",", '"role":"worker"', '"node_id":"x"' },
}
