-- The lines of earlier sessions, one in each line of a file that only its owner may read. Those that hold a secret are
-- not among them. A history that cannot be read or written is none: nobody is kept from working by it.
local secret = require "symphony.repl.secret"
local sys = require "sym.sys"
local uv = require "luv"

local M = {}

local KEPT = 1000
local BYTES_MAX = 1 << 20
local LINE_MAX = 4096

local MODE, FOLDER_MODE = 384, 448 -- 0600, 0700

--- Its path: $XDG_STATE_HOME/symphony/lua_history, by default ~/.local/state; nil without a home.
function M.path()
  local base, home = sys.getenv("XDG_STATE_HOME"), sys.getenv("HOME")
  if not base or base:sub(1, 1) ~= "/" then
    if not home or home == "" then return nil end
    base = home .. "/.local/state"
  end
  return base .. "/symphony/lua_history"
end

local function make_folders(path)
  for at in path:gmatch("()/") do
    if at > 1 then uv.fs_mkdir(path:sub(1, at - 1), FOLDER_MODE) end
  end
end

local function append(path, text, flags)
  local fd = uv.fs_open(path, flags, MODE)
  if not fd then return end
  uv.fs_fchmod(fd, MODE)
  uv.fs_write(fd, text, -1)
  uv.fs_close(fd)
end

--- The last lines, oldest first. A file that has grown is cut to these.
function M.load(path)
  local text = path and sys.read_file(path, BYTES_MAX * 16)
  if not text then return {} end
  local all = {}
  for line in text:gmatch("([^\n]+)\n") do all[#all + 1] = line end
  local lines = table.move(all, math.max(1, #all - KEPT + 1), #all, 1, {})
  if #text > BYTES_MAX or #all > 2 * KEPT then sys.write_file(path, table.concat(lines, "\n") .. "\n", MODE) end
  return lines
end

--- What of @code, which was typed in one or more lines, may be kept: a list of lines.
function M.lines(code)
  local lines = {}
  if secret.is_in(code) then return lines end
  for line in code:gmatch("[^\n]+") do
    if line:find("%S") and #line <= LINE_MAX then lines[#lines + 1] = line end
  end
  return lines
end

--- Adds lines to the file.
function M.add(path, lines)
  if not path or #lines == 0 then return end
  if not uv.fs_stat(path) then make_folders(path) end
  append(path, table.concat(lines, "\n") .. "\n", "a")
end

return M
