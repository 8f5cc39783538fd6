-- Who this daemon is: DIR/key.json and DIR/tls. The file is the commit point of init, join and leave: it is written
-- whole (atomic, synced), and what it says is what happened.
--
--   phase    nil: a member. "init": the cluster is being made, nobody knows of it yet: init says it afresh.
--            "recover": this member is to become the only voter; the start finishes that.
--            "leave": left; what is in the folder is to be wiped.
--   removed  true when it may not serve any more; reason says why
--   trust    the generation of trusted CAs that DIR/tls has (trust.lua); nil: the first, or not known yet
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local json = require "symphony.json"
local sys = require "sym.sys"

local M = {
  me = nil,      -- key.json as loaded, nil for a daemon that belongs to no cluster
  tls = nil,     -- load_tls's answer, of a node that has started
  trouble = nil, -- why the node could not start although it is a member
}

local FORMAT = 1
local MAX_BYTES = 64 * 1024
local PHASES = { init = true, recover = true, leave = true }

function M.dir()
  return sys.options().config_dir or "."
end

function M.path(name)
  return M.dir() .. "/" .. name
end

local function damaged(path, why)
  return nil, errors.new("corrupt", ("%s is damaged: %s"):format(path, why),
    ("put it back from where it was last good; or stop this daemon, move %s away, remove this member on another "
    .. "manager (`symphony manager remove`), and join again with an empty folder"):format(M.dir()))
end

local NUMBER_MAX = 1 << 52 -- both numbers are counted up, and JSON keeps no more than 2^53
local FIELDS = {
  node_id = "string", cluster_id = "string", role = "string", name = "string", folder = "string",
  raft_node_id = "integer", starts = "integer", advertise = "table", managers = "table",
}
local OPTIONAL = { removed = "boolean", reason = "string", phase = "string" }

-- key.json's text to a document. Pure. nil, why.
function M.parse(text)
  if #text > MAX_BYTES then return nil, "it is too long" end
  local doc, err = json.decode(text)
  if type(doc) ~= "table" then return nil, err and err.message or "it is not a JSON object" end
  if doc.format ~= FORMAT then return nil, ("its format is %s, not %d"):format(tostring(doc.format), FORMAT) end
  for name, kind in pairs(FIELDS) do
    local value = doc[name]
    local found = kind == "integer" and math.type(value) or type(value)
    if found ~= kind then return nil, ("field \"%s\" is missing or of the wrong kind"):format(name) end
  end
  for name, kind in pairs(OPTIONAL) do
    if doc[name] ~= nil and type(doc[name]) ~= kind then
      return nil, ("field \"%s\" is of the wrong kind"):format(name) end
  end
  if doc.raft_node_id < 1 or doc.starts < 0 or math.max(doc.raft_node_id, doc.starts) > NUMBER_MAX then
    return nil, "a number in it is out of range"
  end
  if doc.trust ~= nil and (math.type(doc.trust) ~= "integer" or doc.trust < 1 or doc.trust > NUMBER_MAX) then
    return nil, "field \"trust\" is out of range"
  end
  for _, name in ipairs { "raft", "remote", "gossip" } do
    if type(doc.advertise[name]) ~= "string" then return nil, ("field \"advertise.%s\" is missing"):format(name) end
  end
  for at, address in pairs(doc.managers) do
    if type(at) ~= "number" or type(address) ~= "string" then
      return nil, "field \"managers\" holds something else than addresses"
    end
  end
  if doc.phase ~= nil and not PHASES[doc.phase] then return nil, "its phase is unknown" end
  return doc
end

-- The document; nil when there is none; nil, err.
function M.load()
  local path = M.path("key.json")
  local text, err = sys.read_file(path)
  if not text then
    if err.code == "not_found" then return nil end
    return nil, errors.new(err.code, ("cannot read %s: %s"):format(path, err.message),
      "the daemon's user must own it: chown it, mode 0600")
  end
  local doc, why = M.parse(text)
  if not doc then return damaged(path, why) end
  return doc
end

function M.save(doc)
  doc.format = FORMAT
  local ok, err = sys.write_file(M.path("key.json"), json.encode(doc) .. "\n", tonumber("600", 8))
  if not ok then
    return nil, errors.new(err.code, "cannot write key.json: " .. err.message,
      "the daemon must be able to write in " .. M.dir())
  end
  return true
end

-- A copy of @doc with @fields: what this daemon is stays as it was until the copy is on the disk.
function M.changed(doc, fields)
  local copy = {}
  for k, v in pairs(doc) do copy[k] = v end
  for k, v in pairs(fields) do copy[k] = v end
  return copy
end

-- Saves @doc and makes it what this daemon is.
function M.become(doc)
  local ok, err = M.save(doc)
  if not ok then return nil, err end
  M.me = doc
  return true
end

-- The document of a serving member; nil, err that says what this daemon is instead.
function M.member()
  local me = M.me
  if me == nil then
    return nil, errors.new("no_cluster", "this daemon belongs to no cluster yet",
      "`symphony manager init` makes one, `symphony manager join HOST:PORT --token TOKEN` joins one")
  end
  if me.phase == "init" then
    return nil, errors.new("no_cluster", "the making of the cluster was interrupted before it was finished",
      "say `symphony manager init` again: it starts afresh")
  end
  if me.phase == "leave" then
    return nil, errors.new("removed", ("this manager is leaving cluster %s"):format(me.cluster_id),
      "`symphony manager leave` finishes that")
  end
  if me.removed then
    return nil, errors.new("removed", ("this manager is no member of cluster %s any more: %s"):format(me.cluster_id,
      me.reason or "removed"), M.REJOIN)
  end
  return me
end

M.REJOIN = "`symphony manager leave` wipes what this folder still holds of it; then `symphony manager join` again"

-- A folder that was copied, or put back from a backup, must not vote: raft would count its votes twice.
function M.check_folder(doc)
  local path = M.path("raft")
  local now, err = sys.folder_identity(path)
  if not now then
    return nil, errors.new("corrupt", ("%s is not there (%s), but key.json says that this manager has one"):format(path,
      err.message), "a manager without its log must not vote: move " .. M.dir() .. " away, remove this member on "
      .. "another manager, and join again with an empty folder")
  end
  if now ~= doc.folder then
    return nil, errors.new("denied", path .. " is not the folder that this manager was made in: it was copied from "
      .. "another machine or put back from a backup, and would vote twice",
      "use the original folder; or move this one away, remove the member on another manager, and join again. If no "
      .. "other manager is left: `symphony manager init` in an empty folder, then `symphony cluster restore`")
  end
  return true
end

-- DIR/tls -------------------------------------------------------------------------------------------------------

local function tls_path(name)
  return M.path("tls/" .. name)
end

local function make_tls_folder()
  local ok, err = sys.mkdir(M.path("tls"), tonumber("700", 8))
  if not ok then return nil, errors.new(err.code, ("cannot make %s: %s"):format(M.path("tls"), err.message)) end
  return true
end

local function write_tls(name, text)
  local ok, err = sys.write_file(tls_path(name), text, tonumber("600", 8))
  if not ok then return nil, errors.new(err.code, ("cannot write %s: %s"):format(tls_path(name), err.message)) end
  return true
end

-- The key of this node, made and written when there is none. Returns it; nil, err.
function M.node_key()
  local path = tls_path("node.key")
  local pem, err = sys.read_file(path)
  if pem then
    local key, why = crypto.key_load(pem)
    if not key then return damaged(path, why.message) end
    return key
  end
  if err.code ~= "not_found" then return nil, errors.new(err.code, ("cannot read %s: %s"):format(path, err.message)) end
  local key = crypto.key_generate()
  local ok
  ok, err = make_tls_folder()
  if ok then ok, err = write_tls("node.key", key:pem()) end
  if not ok then return nil, err end
  return key
end

function M.save_tls(tls)
  local ok, err = make_tls_folder()
  for name, text in pairs { ["ca.crt"] = tls.ca, ["node.crt"] = tls.cert } do
    if ok then ok, err = write_tls(name, text) end
  end
  return ok, err
end

-- {key, cert, ca, info (of the certificate)}, checked against each other and @doc; nil, err that names the file.
function M.load_tls(doc)
  local pems = {}
  for _, name in ipairs { "node.key", "node.crt", "ca.crt" } do
    local text, err = sys.read_file(tls_path(name))
    if not text then return damaged(tls_path(name), err.message) end
    pems[name] = text
  end
  local key, err = crypto.key_load(pems["node.key"])
  if not key then return damaged(tls_path("node.key"), err.message) end
  local ca
  ca, err = crypto.cert_info(pems["ca.crt"])
  if not ca then return damaged(tls_path("ca.crt"), err.message) end
  if not ca.is_ca then return damaged(tls_path("ca.crt"), "it is no CA certificate") end
  local cert
  cert, err = crypto.cert_info(pems["node.crt"])
  if not cert then return damaged(tls_path("node.crt"), err.message) end
  local ok
  ok, err = crypto.cert_check_key(pems["node.crt"], key)
  if not ok then return damaged(tls_path("node.crt"), "it does not belong to node.key: " .. err.message) end
  ok, err = crypto.cert_check_issuer(pems["node.crt"], pems["ca.crt"])
  if not ok then return damaged(tls_path("node.crt"), "it is not signed by ca.crt: " .. err.message) end
  if cert.cn ~= doc.node_id or cert.o ~= doc.cluster_id or cert.ou ~= doc.role then
    return damaged(tls_path("node.crt"), "it is of another node than key.json")
  end
  if cert.raft_id ~= doc.raft_node_id then
    return damaged(tls_path("node.crt"), ("it is for raft id %s, but key.json says %d"):format(cert.raft_id or "none",
      doc.raft_node_id))
  end
  return { key = key, cert = pems["node.crt"], ca = pems["ca.crt"], info = cert }
end

-- Folders ---------------------------------------------------------------------------------------------------------

-- DIR/raft, made when it is not there; returns its identity, or nil, err.
function M.make_raft_folder()
  local path = M.path("raft")
  local ok, err = sys.mkdir(path, tonumber("700", 8))
  local text
  if ok then text, err = sys.folder_identity(path) end
  if not text then return nil, errors.new(err.code, ("cannot make %s: %s"):format(path, err.message)) end
  return text
end

-- A log or a state without a key.json is somebody's data, not an empty folder.
function M.check_unused()
  for _, name in ipairs { "raft/metadata1", "raft/metadata2", "state/data.mdb" } do
    if sys.stat(M.path(name)) then
      return nil, errors.new("exists", ("%s is there, but %s is missing"):format(M.path(name), M.path("key.json")),
        "put key.json back if this manager is still a member; else move the folder away")
    end
  end
  return true
end

-- Removes all that a membership leaves behind, key.json last.
function M.wipe()
  for _, name in ipairs { "raft", "state", "tls" } do
    local ok, err = sys.remove_tree(M.path(name))
    if not ok and err.code ~= "not_found" then
      return nil, errors.new(err.code, ("cannot remove %s: %s"):format(M.path(name), err.message))
    end
  end
  local ok, err = sys.remove(M.path("key.json"))
  if not ok and err.code ~= "not_found" then
    return nil, errors.new(err.code, "cannot remove key.json: " .. err.message)
  end
  M.me, M.tls, M.trouble = nil, nil, nil
  return true
end

return M
