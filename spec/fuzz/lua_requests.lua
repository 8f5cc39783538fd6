local admit = require "symphony.cluster.admit"
local certs = require "symphony.cluster.certs"
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local json = require "symphony.json"
local kv = require "symphony.cluster.kv"
local nodes = require "symphony.cluster.nodes"
local report = require "symphony.services.report"
local schema = require "symphony.services.schema"
local token = require "symphony.cluster.token"
local values = require "symphony.cluster.values"

local REFUSALS = { invalid = true, too_big = true }

-- Hostile input is the caller's fault, and told so; never an error of symphony itself.
local function refused(err)
  assert(errors.is(err), tostring(err))
  assert(REFUSALS[err.code], err.code .. ": " .. err.message)
  assert(#err.message < 2000 and utf8.len(json.encode(errors.body(err))))
end

local function check_key(key, empty)
  assert(type(key) == "string" and key:sub(1, #kv.PREFIX) == kv.PREFIX, "out of the users' keys")
  assert(#key <= #kv.PREFIX + kv.KEY_MAX and (empty or #key > #kv.PREFIX) and not key:find("\0", 1, true))
end

local function whole(n)
  assert(n == nil or math.type(n) == "integer" and n >= 0)
end

local function check_txn(txn)
  assert(#txn.compare <= kv.OPS_MAX and #txn.ops <= kv.OPS_MAX)
  for _, c in ipairs(txn.compare) do
    check_key(c.key or c.prefix, c.prefix ~= nil)
    assert((c.key == nil) ~= (c.prefix == nil))
    for _, name in ipairs { "create_revision", "mod_revision", "revision", "count" } do whole(c[name]) end
    assert(c.absent == nil or c.absent == true)
    assert(c.value == nil or type(c.value) == "string" and #c.value <= kv.VALUE_MAX)
  end
  for _, op in ipairs(txn.ops) do
    check_key(op.put or op.delete)
    assert((op.put == nil) ~= (op.delete == nil) and (op.put == nil) == (op.value == nil))
    assert(op.value == nil or type(op.value) == "string" and #op.value <= kv.VALUE_MAX)
  end
end

local function check_join(request)
  assert(token.ROLES[request.role] and type(request.csr) == "string" and values.check_name(request.name))
  assert(type(request.named) == "boolean" and (request.version == nil or type(request.version) == "string"))
  for _, address in pairs(request.addresses) do assert(type(address) == "string" and #address <= 300) end
  assert(request.role ~= "manager" or request.addresses.raft and request.addresses.remote and request.addresses.gossip)
  assert(request.token == nil or #request.token.secret == 16)
end

-- A change of a node leaves a node that is what a node may be.
local function check_patch(body)
  local ok, patch = pcall(nodes.check_patch, body)
  if not ok then return refused(patch) end
  local n = { name = "w", availability = "active", labels = { zone = "a", rack = "7" } }
  local done, changes = pcall(nodes.change, n, patch)
  if not done then return refused(changes) end
  assert(values.check_name(n.name) and nodes.AVAILABILITY[n.availability] and values.check_labels(n.labels))
  assert(#changes <= 2 + 2 * values.LABELS_MAX and utf8.len(table.concat(changes, "; ")))
  assert(json.encode(n))
end

-- A resource's spec is what its schema says; what a worker says of one is what the state may hold.
local SPEC = {
  command = { type = "array", of = { type = "string", min = 1, max = 100 }, min = 1, max = 8, required = true },
  env = { type = "map", of = { type = "string" }, keys = "^[%a_][%w_]*$", max = 8 },
  disk = { type = "object", fields = { size = { type = "integer", min = 1, max = 1 << 40, required = true } } },
  restart = { type = "string", one_of = { "always", "never" }, default = "always" },
  ready = { type = "number", min = 0, max = 300 },
  on = { type = "boolean" },
}

local function check_spec(body)
  local spec, err = schema.check(SPEC, body)
  if not spec then return refused(err) end
  assert(#spec.command >= 1 and #spec.command <= 8 and (spec.restart == "always" or spec.restart == "never"))
  for name, value in pairs(spec.env or {}) do assert(name:find("^[%w_]+$") and type(value) == "string") end
  assert(spec.disk == nil or math.type(spec.disk.size) == "integer")
  assert(json.encode(assert(schema.check(SPEC, spec))) == json.encode(spec)) -- what is good stays as it is
end

local function check_report(body)
  local ok, items = pcall(report.check, body)
  if not ok then return refused(items) end
  assert(#items >= 1 and #items <= report.ITEMS_MAX)
  for _, item in ipairs(items) do
    assert(not item.kind:find("/") and not item.id:find("/") and math.type(item.generation) == "integer")
    assert(item.state:find("^%l[%l%-]*$") and json.encode(item))
  end
end

local function check(text)
  local body, err = json.decode(text)
  if body == nil then return refused(err) end
  local ok, txn = pcall(kv.parse_txn, body)
  if ok then check_txn(txn) else refused(txn) end
  local request
  request, err = admit.check(body)
  if request then check_join(request) else refused(err) end
  -- What else reads a body: a list of labels, of CIDR blocks; a change of a node.
  if type(body) ~= "table" then return end
  ok, err = token.check_options(body)
  if not ok then refused(err) end
  check_patch(body)
  check_spec(body)
  check_report(body)
  ok, err = certs.check(body)
  if ok then assert(#body.name <= 63 and body.name ~= "ca" and body.ttl > 0) else refused(err) end
end

local good = token.make(crypto.sha256("ca"), crypto.sha256("secret"):sub(1, 16))
local addresses = { raft = "10.0.0.1:15760", remote = "[fd00::1]:27242", gossip = "m-01:37065" }

return {
  check = check,
  seeds = {
    '{"compare":[{"key":"a","absent":true},{"prefix":"b/","count":3}],"ops":[{"put":"a","value":"1"},{"delete":"b"}]}',
    '{"compare":[{"key_base64":"/w==","mod_revision":7},{"prefix":"","revision":9},{"key":"k","value_base64":"aGk="}]}',
    '{"ops":[{"put_base64":"/w==","value_base64":""},{"put":"x","value":""}]}',
    json.encode { role = "manager", csr = "-----BEGIN", name = "m-01", named = true, addresses = addresses,
      token = good },
    json.encode { role = "worker", csr = "x", name = "w", addresses = {}, version = "0.1.0" },
    '{"role":"reader","name":"anna","ttl":3600,"csr":"x","replace":true}',
    '{"role":"worker","uses":3,"labels":{"zone":"a"},"cidrs":["10.0.0.0/8","fd00::/8"],"ttl":60}',
    '{"name":"w-02","availability":"drain","labels":{"zone":"b","rack":null,"disk":"ssd"}}',
  },
  words = { '"compare":', '"ops":', '"key":', '"prefix":', '"put":', '"delete":', '"value":',
    '"absent":true', '"count":',
    '"revision":', '"mod_revision":', '"create_revision":', '_base64":', '"addresses":', '"role":', '"token":',
    '"csr":', '"labels":', '"name":"x"',
    '"availability":"pause"', '"cidrs":', '"uses":', '{"a":1}', "[]", "{}", "null", "true", "0", "-1",
    "1e999", "[1]", '[null]', "," },
}
